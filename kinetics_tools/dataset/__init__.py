"""What a set is: manifest, labels, the layout of a folder of clips, the ledger."""
