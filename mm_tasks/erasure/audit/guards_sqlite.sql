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
