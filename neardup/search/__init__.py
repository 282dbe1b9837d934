"""Every pair at or above the threshold: geometry, clusters, the range search, verification and the audit."""
