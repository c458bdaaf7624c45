"""Query vectors and the search for their neighbours."""
