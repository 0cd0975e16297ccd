"""The latency report as a document: HTML, Markdown, CSV and JSON from stored evidence; verdicts are derived."""
