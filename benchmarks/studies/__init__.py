"""Answer single questions: other networks, the cost model, training, and what a ticket holds."""
