"""Models that were trained elsewhere: built from what an import keeps of them; served and attacked, not trained."""
