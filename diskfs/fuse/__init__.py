"""The mount: the only package that knows trio and pyfuse3."""
