"""Pages with places to fill in, one for each client: `lmtower connect` and docs/clients are made of them."""
