"""The paper's claims, tables and figures, each as a file, beside what searches here say of them."""
