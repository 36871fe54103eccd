-- By which invitations that are over are found, and removed.

create index invitations_expired on invitations (expires_at);
