"""Work on what clients bring, in a child process that can reach nothing and can be ended at any time (`room.Room`)."""
