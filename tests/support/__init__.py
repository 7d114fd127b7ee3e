"""What tests share: tiny models and files, a Hub on this machine, commands, kills. Has no tests and judges nothing."""
