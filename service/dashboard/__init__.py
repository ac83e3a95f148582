"""The dashboard: a page of plain modules that reads the API with the viewer's own key."""
