"""What a run is and how it runs: specs, architectures, costs, data, training and evaluation."""
