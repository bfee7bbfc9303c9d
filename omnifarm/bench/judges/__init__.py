"""Who grades what arithmetic cannot: a language model behind an endpoint, or the rules of the drawn world."""
