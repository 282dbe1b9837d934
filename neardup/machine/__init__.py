"""What the machine gives: files, memory, cores, processes, other machines. Knows nothing of embeddings."""
