CREATE TABLE mm_erasure_audit (seq BIGINT NOT NULL, line TEXT NOT NULL, PRIMARY KEY (seq))

CREATE TABLE mm_checkpoints (size BIGINT NOT NULL, head VARCHAR(64) NOT NULL, at VARCHAR(24) NOT NULL, PRIMARY KEY (size))

CREATE TABLE mm_suppressions (erasure VARCHAR(36) NOT NULL, tag VARCHAR(32) NOT NULL, project VARCHAR(64) NOT NULL, kind VARCHAR(16) NOT NULL, since VARCHAR(24) NOT NULL, lifted_at VARCHAR(24), PRIMARY KEY (erasure, tag), FOREIGN KEY(erasure) REFERENCES mm_erasures (id))

CREATE INDEX mm_suppressions_tag ON mm_suppressions (project, tag)

-- The guards of the append-only tables: triggers that refuse any change but the next row.
-- A blank line ends a statement.
-- Statement triggers also refuse an upsert or an UPDATE of no row. With ALWAYS,
-- `session_replication_role` does not switch them off.
CREATE FUNCTION mm_erasure_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'mm_erasure_audit is append-only'; END $$;

CREATE FUNCTION mm_erasure_audit_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM mm_erasure_audit) THEN RAISE EXCEPTION 'mm_erasure_audit is append-only: seq must be the next'; END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER mm_erasure_audit_no_update BEFORE UPDATE OR DELETE OR TRUNCATE ON mm_erasure_audit
FOR EACH STATEMENT EXECUTE FUNCTION mm_erasure_audit_refuse();

CREATE TRIGGER mm_erasure_audit_next BEFORE INSERT ON mm_erasure_audit
FOR EACH ROW EXECUTE FUNCTION mm_erasure_audit_follow();

ALTER TABLE mm_erasure_audit ENABLE ALWAYS TRIGGER mm_erasure_audit_no_update;

ALTER TABLE mm_erasure_audit ENABLE ALWAYS TRIGGER mm_erasure_audit_next;

CREATE FUNCTION mm_checkpoints_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'mm_checkpoints is append-only'; END $$;

CREATE FUNCTION mm_checkpoints_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.size <= (SELECT coalesce(max(size), 0) FROM mm_checkpoints) THEN RAISE EXCEPTION 'mm_checkpoints is append-only: size must grow'; END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER mm_checkpoints_no_update BEFORE UPDATE OR DELETE OR TRUNCATE ON mm_checkpoints
FOR EACH STATEMENT EXECUTE FUNCTION mm_checkpoints_refuse();

CREATE TRIGGER mm_checkpoints_next BEFORE INSERT ON mm_checkpoints
FOR EACH ROW EXECUTE FUNCTION mm_checkpoints_follow();

ALTER TABLE mm_checkpoints ENABLE ALWAYS TRIGGER mm_checkpoints_no_update;

ALTER TABLE mm_checkpoints ENABLE ALWAYS TRIGGER mm_checkpoints_next;
