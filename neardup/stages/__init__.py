"""What stages are: folders on disk, what they were made from, and what of them still holds when the input has grown."""
