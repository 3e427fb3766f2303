"""Image bytes to pixels, in worker processes that may die without taking the job along."""
