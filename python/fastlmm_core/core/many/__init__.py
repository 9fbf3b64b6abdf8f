"""One design, many fits: thousands of responses (`fits`, `responses`), candidate columns (`candidates`)."""
