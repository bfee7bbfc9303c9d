"""One process, one pack of lanes: learns soft tokens over a frozen backbone. Knows no store, queue or cluster."""
