"""OmniPBench: what a system is asked, what its replies are worth, and the table beside the paper's."""
