"""Time ops and networks, sparse against dense, and write the pages about the results."""
