"""Programs that use the package. They are not part of its wheel."""
