CREATE TABLE mm_erasure_audit (seq INTEGER NOT NULL, line TEXT NOT NULL, PRIMARY KEY (seq))

CREATE TABLE mm_checkpoints (size INTEGER NOT NULL, head VARCHAR(64) NOT NULL, at VARCHAR(24) NOT NULL, PRIMARY KEY (size))

CREATE TABLE mm_suppressions (erasure VARCHAR(36) NOT NULL, tag VARCHAR(32) NOT NULL, project VARCHAR(64) NOT NULL, kind VARCHAR(16) NOT NULL, since VARCHAR(24) NOT NULL, lifted_at VARCHAR(24), PRIMARY KEY (erasure, tag), FOREIGN KEY(erasure) REFERENCES mm_erasures (id))

CREATE INDEX mm_suppressions_tag ON mm_suppressions (project, tag)

-- The guards of the append-only tables: triggers that refuse any change but the next row.
-- A blank line ends a statement.
-- `IS DISTINCT FROM` is unknown to older SQLite; NEW.seq is never NULL here, but -1.
CREATE TRIGGER mm_erasure_audit_no_update BEFORE UPDATE ON mm_erasure_audit
BEGIN SELECT RAISE(ABORT, 'mm_erasure_audit is append-only'); END;

CREATE TRIGGER mm_erasure_audit_no_delete BEFORE DELETE ON mm_erasure_audit
BEGIN SELECT RAISE(ABORT, 'mm_erasure_audit is append-only'); END;

CREATE TRIGGER mm_erasure_audit_next BEFORE INSERT ON mm_erasure_audit WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM mm_erasure_audit)
BEGIN SELECT RAISE(ABORT, 'mm_erasure_audit is append-only: seq must be the next'); END;

CREATE TRIGGER mm_checkpoints_no_update BEFORE UPDATE ON mm_checkpoints
BEGIN SELECT RAISE(ABORT, 'mm_checkpoints is append-only'); END;

CREATE TRIGGER mm_checkpoints_no_delete BEFORE DELETE ON mm_checkpoints
BEGIN SELECT RAISE(ABORT, 'mm_checkpoints is append-only'); END;

CREATE TRIGGER mm_checkpoints_next BEFORE INSERT ON mm_checkpoints WHEN NEW.size <= (SELECT coalesce(max(size), 0) FROM mm_checkpoints)
BEGIN SELECT RAISE(ABORT, 'mm_checkpoints is append-only: size must grow'); END;
