"""Many jobs, many workers: durable job records, leases, policies, and the cluster that runs them."""
