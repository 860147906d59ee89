-- Charges, their attempts and inquiries.

create table charges (
    charge_id        uuid        primary key,
    payment_order_id uuid        not null unique,
    payment_id       uuid        not null,
    merchant_id      text        not null,
    order_id         text        not null,
    seller_id        text        not null,
    currency         text        not null,
    amount           bigint      not null check (amount > 0),
    payment_token    text        not null,
    psp_account      text        not null,
    state            text        not null default 'OPEN' check (state in ('OPEN', 'SUCCEEDED', 'FAILED', 'REVIEW')),
    -- The schedule's truth: what to do next, and when. The alarm in Redis only wakes early.
    next_action      text        check (next_action in ('CHARGE', 'INQUIRE')),
    next_action_at   timestamptz,
    -- Raised by every claim; a result is written only under the epoch that it was claimed with.
    lease_epoch      bigint      not null default 0,
    -- A call to charge is under way, or its worker died in it.
    in_call          boolean     not null default false,
    -- Of the idempotency key in use; the key is this old.
    generation       integer     not null default 1,
    key_since        timestamptz,
    attempt_count    integer     not null default 0,
    retry_count      integer     not null default 0,
    hold_count       integer     not null default 0,
    inquiry_count    integer     not null default 0,
    -- Inquiries since the last attempt: the place in the schedule.
    inquiry_round    integer     not null default 0,
    last_sent_at     timestamptz,
    uncertain_since  timestamptz,
    psp_reference    text        not null default '',
    failure_reason   text,
    failure_code     text,
    failure_message  text,
    event_id         uuid        not null,
    traceparent      text        not null,
    created_at       timestamptz not null default clock_timestamp(),
    updated_at       timestamptz not null default clock_timestamp(),
    version          bigint      not null default 1,
    check ((state = 'OPEN') = (next_action is not null)),
    check ((next_action is null) = (next_action_at is null)),
    check ((state = 'FAILED') = (failure_reason is not null))
);
create index charges_due on charges (next_action, next_action_at) where next_action is not null;
create index charges_uncertain on charges (uncertain_since) where uncertain_since is not null;

-- One call to charge, committed before it is made.
create table attempts (
    charge_id      uuid        not null references charges,
    attempt_number integer     not null,
    attempt_id     uuid        not null,
    generation     integer     not null,
    state          text        not null check (state in ('CREATED', 'SENT', 'PENDING', 'SUCCEEDED', 'DECLINED',
                                                         'REJECTED_RETRYABLE', 'UNKNOWN', 'REVIEW')),
    code           text        not null default '',
    message        text        not null default '',
    sent_at        timestamptz not null default clock_timestamp(),
    finished_at    timestamptz,
    primary key (charge_id, attempt_number)
);

create table inquiries (
    charge_id      uuid        not null references charges,
    inquiry_number integer     not null,
    result         text        not null,
    code           text        not null default '',
    sent_at        timestamptz not null,
    primary key (charge_id, inquiry_number)
);

do $$
declare app text := current_database() || '_app';
begin
    if exists (select from pg_roles where rolname = app) then
        execute format('grant select, insert, update on charges, attempts to %I', app);
        execute format('grant select, insert on inquiries to %I', app);
    end if;
end
$$;
