"""What a person sees: one module a page, each with its ``ROUTES``."""
