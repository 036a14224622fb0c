"""From files to crops: sources find cases, `image` reads them, `recipe` prepares them, `store` keeps them."""
