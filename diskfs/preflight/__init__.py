"""Will AWS VM Import take it? Facts about an image, rules over the facts, and the report."""
