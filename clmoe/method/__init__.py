"""The method of the paper: one file for each equation between training and answering."""
