-- The guards of the append-only tables: triggers that refuse any change but the next row.
-- A blank line ends a statement; each can be repeated.
-- Statement triggers also refuse an upsert or an UPDATE of no row. With ALWAYS,
-- `session_replication_role` does not switch them off. Tables are named with their schema, as a
-- temporary table of the same name would come first. The index needs a function that is immutable,
-- which a cast to JSON is not; a quote inside a text of a line is escaped.
CREATE INDEX IF NOT EXISTS mm_erasure_audit_erasure ON mm_erasure_audit (substring(line from '"erasure":"([^"]*)"'));

CREATE INDEX IF NOT EXISTS mm_erasure_audit_added ON mm_erasure_audit (substring(line from '"erasure":"([^"]*)"')) WHERE substring(line from '"entry":"([^"]*)"') = 'anonymous_added';

CREATE OR REPLACE FUNCTION mm_erasure_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'mm_erasure_audit is append-only'; END $$;

CREATE OR REPLACE FUNCTION mm_erasure_audit_follow() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE before record; head text := repeat('0', 64);
BEGIN
  EXECUTE 'SELECT seq, line FROM ' || quote_ident(TG_TABLE_SCHEMA) || '.mm_erasure_audit ORDER BY seq DESC LIMIT 1' INTO before;
  IF NEW.seq <> coalesce(before.seq, 0) + 1 THEN RAISE EXCEPTION 'mm_erasure_audit is append-only: seq must be the next'; END IF;
  IF before.seq IS NOT NULL THEN head := encode(sha256(convert_to(before.line, 'UTF8')), 'hex'); END IF;
  IF ((NEW.line::json) ->> 'seq') IS DISTINCT FROM NEW.seq::text OR ((NEW.line::json) ->> 'prev') IS DISTINCT FROM head OR ((NEW.line::json) ->> 'mac') IS NULL THEN RAISE EXCEPTION 'mm_erasure_audit is append-only: the line is not the next one'; END IF;
  RETURN NEW;
END $$;

DROP TRIGGER IF EXISTS mm_erasure_audit_no_update ON mm_erasure_audit;

CREATE TRIGGER mm_erasure_audit_no_update BEFORE UPDATE OR DELETE OR TRUNCATE ON mm_erasure_audit
FOR EACH STATEMENT EXECUTE FUNCTION mm_erasure_audit_refuse();

DROP TRIGGER IF EXISTS mm_erasure_audit_next ON mm_erasure_audit;

CREATE TRIGGER mm_erasure_audit_next BEFORE INSERT ON mm_erasure_audit
FOR EACH ROW EXECUTE FUNCTION mm_erasure_audit_follow();

ALTER TABLE mm_erasure_audit ENABLE ALWAYS TRIGGER mm_erasure_audit_no_update;

ALTER TABLE mm_erasure_audit ENABLE ALWAYS TRIGGER mm_erasure_audit_next;

CREATE OR REPLACE FUNCTION mm_checkpoints_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'mm_checkpoints is append-only'; END $$;

CREATE OR REPLACE FUNCTION mm_checkpoints_follow() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE last record;
BEGIN
  EXECUTE 'SELECT seq, line FROM ' || quote_ident(TG_TABLE_SCHEMA) || '.mm_erasure_audit ORDER BY seq DESC LIMIT 1' INTO last;
  IF NEW.size IS DISTINCT FROM last.seq OR NEW.head IS DISTINCT FROM encode(sha256(convert_to(last.line, 'UTF8')), 'hex') THEN RAISE EXCEPTION 'mm_checkpoints is append-only: a checkpoint must be of the end of the log'; END IF;
  RETURN NEW;
END $$;

DROP TRIGGER IF EXISTS mm_checkpoints_no_update ON mm_checkpoints;

CREATE TRIGGER mm_checkpoints_no_update BEFORE UPDATE OR DELETE OR TRUNCATE ON mm_checkpoints
FOR EACH STATEMENT EXECUTE FUNCTION mm_checkpoints_refuse();

DROP TRIGGER IF EXISTS mm_checkpoints_next ON mm_checkpoints;

CREATE TRIGGER mm_checkpoints_next BEFORE INSERT ON mm_checkpoints
FOR EACH ROW EXECUTE FUNCTION mm_checkpoints_follow();

ALTER TABLE mm_checkpoints ENABLE ALWAYS TRIGGER mm_checkpoints_no_update;

ALTER TABLE mm_checkpoints ENABLE ALWAYS TRIGGER mm_checkpoints_next;
