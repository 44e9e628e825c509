"""What the results say: reads the store, never writes to it, never trains."""
