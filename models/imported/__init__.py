"""Models that were trained elsewhere: they are imported, served and attacked, but not trained here."""
