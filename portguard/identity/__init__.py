"""Certificate to identity: names, groups, patterns, trusts and revocation. Pure: DER bytes in, values out."""
