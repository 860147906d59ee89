-- Balances, folded from the journal's entries.

create table balance_accounts (
    account_id  bigint generated always as identity primary key,
    merchant_id text   not null,
    type        text   not null,
    entity      text   not null,
    currency    text   not null,
    unique (merchant_id, type, entity, currency)
);

-- One row for each account and slot, the slot being the message's partition, so that replicas do not queue on a
-- platform account; a seller's account lives in one slot. Reads sum.
create table balances (
    account_id bigint      not null references balance_accounts,
    slot       smallint    not null,
    debits     bigint      not null check (debits >= 0),
    credits    bigint      not null check (credits >= 0),
    -- How many postings it holds.
    version    bigint      not null,
    updated_at timestamptz not null default clock_timestamp(),
    primary key (account_id, slot)
);

-- Which entries are in the balances: for readers who wait for theirs, and for the rebuild.
create table applied_entries (
    entry_id   uuid        primary key,
    applied_at timestamptz not null default clock_timestamp()
);

do $$
declare app text := current_database() || '_app';
begin
    if exists (select from pg_roles where rolname = app) then
        execute format('grant select, insert on balance_accounts, applied_entries to %I', app);
        execute format('grant select, insert, update on balances to %I', app);
    end if;
end
$$;
