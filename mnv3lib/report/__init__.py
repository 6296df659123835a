"""The notebooks run, and the pages, figures and tables made of them."""
