"""What is read: shards, their ids, and what is known of their rows."""
