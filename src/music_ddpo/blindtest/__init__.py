"""The blind listening test: pairs of clips, a page on localhost that collects votes, and what the votes say."""
