"""The report of runs and merged CLIPs: figures as plain values, and one HTML file that shows them."""
