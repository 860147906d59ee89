-- The journal: insert-only by grant and by trigger. A posting moves one positive amount from one account to another in
-- one currency, so that an unbalanced entry cannot be written.

create table accounts (
    account_id  bigint generated always as identity primary key,
    merchant_id text   not null,
    type        text   not null check (type in (
        'PLATFORM_CASH', 'PSP_RECEIVABLE', 'PSP_CLEARING', 'AUTH_RECEIVABLE', 'AUTH_LIABILITY', 'SELLER_PENDING',
        'SELLER_PAYABLE', 'SELLER_RESERVE', 'REFUND_IN_TRANSIT', 'PAYOUT_IN_TRANSIT', 'BUYER_REFUNDABLE',
        'PLATFORM_FEE_REVENUE', 'PSP_FEE_EXPENSE', 'SCHEME_FEE_EXPENSE', 'INTERCHANGE_EXPENSE', 'DISPUTE_FEE_EXPENSE',
        'CHARGEBACK_LOSS', 'FX_POSITION', 'FX_GAIN_LOSS')),
    entity      text   not null,
    currency    text   not null,
    unique (merchant_id, type, entity, currency),
    -- The target of the postings' keys: an account of another currency cannot be named.
    unique (account_id, currency)
);

create table journal_entries (
    -- UUIDv5 of kind and operation: unique for ever, so that a repeated event stays one entry.
    entry_id         uuid        primary key,
    sequence         bigint      not null generated always as identity unique,
    merchant_id      text        not null,
    kind             text        not null check (kind in (
        'AUTH_HOLD', 'CAPTURE', 'FEE', 'AVAILABLE', 'VOID', 'SETTLEMENT', 'PAYOUT', 'REFUND', 'DISPUTE', 'RESERVE',
        'UNEXPECTED', 'ADJUSTMENT', 'FX')),
    operation_id     uuid        not null,
    payment_id       uuid,
    payment_order_id uuid,
    seller_id        text,
    event_id         uuid        not null,
    effective_at     timestamptz not null,
    booked_at        timestamptz not null default clock_timestamp()
);
create index journal_entries_newest on journal_entries (merchant_id, sequence desc);
create index journal_entries_by_payment on journal_entries (payment_id);
create index journal_entries_by_event on journal_entries (event_id);

create table postings (
    entry_id       uuid     not null references journal_entries,
    leg            smallint not null check (leg > 0),
    debit_account  bigint   not null,
    credit_account bigint   not null check (credit_account <> debit_account),
    amount         bigint   not null check (amount > 0),
    currency       text     not null,
    sequence       bigint   not null generated always as identity,
    primary key (entry_id, leg),
    foreign key (debit_account, currency) references accounts (account_id, currency),
    foreign key (credit_account, currency) references accounts (account_id, currency)
);
create index postings_by_debit on postings (debit_account, sequence) include (amount);
create index postings_by_credit on postings (credit_account, sequence) include (amount);

create function florin_refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is insert-only: correct it by an entry of its own', tg_table_name
        using errcode = 'restrict_violation';
end
$$;
create trigger journal_entries_insert_only before update or delete or truncate on journal_entries
    for each statement execute function florin_refuse_change();
create trigger postings_insert_only before update or delete or truncate on postings
    for each statement execute function florin_refuse_change();
create trigger accounts_insert_only before update or delete or truncate on accounts
    for each statement execute function florin_refuse_change();

-- How accountants see it: two lines for each posting.
create view journal_lines as
    select p.entry_id, p.leg, 'DEBIT' as side, p.debit_account as account_id, p.amount, p.currency, p.sequence from postings p
    union all
    select p.entry_id, p.leg, 'CREDIT', p.credit_account, p.amount, p.currency, p.sequence from postings p;

do $$
declare app text := current_database() || '_app';
begin
    if exists (select from pg_roles where rolname = app) then
        execute format('grant select, insert on accounts, journal_entries, postings to %I', app);
        execute format('grant select on journal_lines to %I', app);
    end if;
end
$$;
