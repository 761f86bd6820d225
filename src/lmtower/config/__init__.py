"""tower.yaml as a frozen, typed ``Tower``."""
