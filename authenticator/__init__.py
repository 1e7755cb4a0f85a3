"""Who you are and what you may use: users, projects, domains, key pairs, request signing, policies."""
