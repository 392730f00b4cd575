-- The guards of the append-only tables: triggers that refuse any change but the next row.
-- A blank line ends a statement; each can be repeated.
-- `IS DISTINCT FROM` is unknown to older SQLite, which says IS NOT. SQLite has no SHA-256: it
-- cannot compare `prev` and the head of a checkpoint.
CREATE INDEX IF NOT EXISTS mm_erasure_audit_erasure ON mm_erasure_audit (json_extract(line, '$.erasure'));

CREATE INDEX IF NOT EXISTS mm_erasure_audit_added ON mm_erasure_audit (json_extract(line, '$.erasure')) WHERE json_extract(line, '$.entry') = 'anonymous_added';

CREATE TRIGGER IF NOT EXISTS mm_erasure_audit_no_update BEFORE UPDATE ON mm_erasure_audit
BEGIN SELECT RAISE(ABORT, 'mm_erasure_audit is append-only'); END;

CREATE TRIGGER IF NOT EXISTS mm_erasure_audit_no_delete BEFORE DELETE ON mm_erasure_audit
BEGIN SELECT RAISE(ABORT, 'mm_erasure_audit is append-only'); END;

DROP TRIGGER IF EXISTS mm_erasure_audit_next;

CREATE TRIGGER mm_erasure_audit_next BEFORE INSERT ON mm_erasure_audit
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM mm_erasure_audit) OR NOT json_valid(NEW.line)
OR CASE WHEN json_valid(NEW.line) THEN json_extract(NEW.line, '$.seq') IS NOT NEW.seq OR json_extract(NEW.line, '$.mac') IS NULL END
BEGIN SELECT RAISE(ABORT, 'mm_erasure_audit is append-only: the line is not the next one'); END;

CREATE TRIGGER IF NOT EXISTS mm_checkpoints_no_update BEFORE UPDATE ON mm_checkpoints
BEGIN SELECT RAISE(ABORT, 'mm_checkpoints is append-only'); END;

CREATE TRIGGER IF NOT EXISTS mm_checkpoints_no_delete BEFORE DELETE ON mm_checkpoints
BEGIN SELECT RAISE(ABORT, 'mm_checkpoints is append-only'); END;

DROP TRIGGER IF EXISTS mm_checkpoints_next;

CREATE TRIGGER mm_checkpoints_next BEFORE INSERT ON mm_checkpoints
WHEN NEW.size IS NOT (SELECT max(seq) FROM mm_erasure_audit)
BEGIN SELECT RAISE(ABORT, 'mm_checkpoints is append-only: a checkpoint must be of the end of the log'); END;
