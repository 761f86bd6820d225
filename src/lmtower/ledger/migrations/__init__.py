"""Alembic migrations of the ledger; ``lmtower.ledger.migrate`` runs them."""
