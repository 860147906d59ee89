//! `florin.ledger.v1.LedgerService`.

use std::collections::BTreeMap;
use std::sync::Arc;

use florin::auth::Call;
use florin::clock::Clock;
use florin::error::{Error, Violations};
use florin::id::JournalEntryId;
use florin::money::Money;
use florin::page::{self, Query};
use florin::proto::ledger::v1 as proto;
use florin::proto::ledger::v1::ledger_service_server::LedgerService;
use florin::wire as platform;
use tonic::{Request, Response, Status};

use crate::error::entry_not_found;
use crate::store::{EntryFilter, Store};
use crate::wire;

/// Answers from the journal.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// The database.
    pub store: Store,
    /// The process's clock.
    pub clock: Arc<dyn Clock>,
}

#[tonic::async_trait]
impl LedgerService for Ledger {
    async fn get_journal_entry(
        &self,
        request: Request<proto::GetJournalEntryRequest>,
    ) -> Result<Response<proto::JournalEntry>, Status> {
        let call = Call::current()?;
        let id = platform::id::<JournalEntryId>("journal_entry_id", &request.into_inner().journal_entry_id);
        let id = id.map_err(|violation| Error::invalid(vec![violation]))?;
        let filter = EntryFilter { entry_id: Some(id), ..EntryFilter::default() };
        let found = self.store.entries(&call.merchant, &filter, None, 1).await?;
        let stored = found.first().ok_or_else(|| entry_not_found(id))?;
        Ok(Response::new(wire::journal_entry(stored)))
    }

    async fn list_journal_entries(
        &self,
        request: Request<proto::ListJournalEntriesRequest>,
    ) -> Result<Response<proto::ListJournalEntriesResponse>, Status> {
        let call = Call::current()?;
        let proto::ListJournalEntriesRequest {
            page_size,
            page_token,
            payment_id,
            payment_order_id,
            kinds,
            effective_time_from,
            effective_time_to,
        } = request.into_inner();
        let mut violations = Violations::default();
        let filter = EntryFilter {
            entry_id: None,
            payment_id: violations.take(platform::filter_id("payment_id", &payment_id)).flatten(),
            payment_order_id: violations.take(platform::filter_id("payment_order_id", &payment_order_id)).flatten(),
            kinds: violations.take(wire::kinds(&kinds)).unwrap_or_default(),
            from: violations.take(platform::filter_time("effective_time_from", effective_time_from.as_ref())).flatten(),
            to: violations.take(platform::filter_time("effective_time_to", effective_time_to.as_ref())).flatten(),
        };
        let query = Query::new("ListJournalEntries", &call.merchant, &format!("{filter:?}"));
        let size = violations.take(page::size(page_size)).unwrap_or_default();
        let before = violations.take(query.position::<8>(&page_token)).flatten().map(i64::from_be_bytes);
        violations.finish()?;
        let mut entries = self.store.entries(&call.merchant, &filter, before, size + 1).await?;
        let next_page_token = page::cut(&mut entries, size, &query, |stored| stored.sequence.to_be_bytes().to_vec());
        Ok(Response::new(proto::ListJournalEntriesResponse {
            journal_entries: entries.iter().map(wire::journal_entry).collect(),
            next_page_token,
        }))
    }

    async fn get_account_statement(
        &self,
        request: Request<proto::GetAccountStatementRequest>,
    ) -> Result<Response<proto::GetAccountStatementResponse>, Status> {
        let call = Call::current()?;
        let proto::GetAccountStatementRequest { account_code, page_size, page_token } = request.into_inner();
        let mut violations = Violations::default();
        let account = violations.take(platform::account("account_code", &account_code));
        let query = Query::new("GetAccountStatement", &call.merchant, &account_code);
        let size = violations.take(page::size(page_size)).unwrap_or_default();
        let before = violations.take(query.position::<8>(&page_token)).flatten().map(i64::from_be_bytes);
        violations.finish()?;
        let Some(account) = account else {
            return Err(Error::internal("an account was neither taken nor refused").into());
        };
        let mut lines = self.store.statement(&call.merchant, &account, before, size + 1).await?;
        let newest = if before.is_none() {
            lines.first().map(|line| line.running)
        } else {
            self.newest(&call.merchant, &account).await?
        };
        let balance = account
            .account_type
            .balance(newest.unwrap_or_default(), 0)
            .ok_or_else(|| Error::internal("a balance does not fit 64 bits"))?;
        let next_page_token = page::cut(&mut lines, size, &query, |line| line.sequence.to_be_bytes().to_vec());
        let lines = lines
            .iter()
            .map(|line| wire::statement_line(&account, line))
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::internal)?;
        Ok(Response::new(proto::GetAccountStatementResponse {
            lines,
            next_page_token,
            balance: Some(platform::money(Money::new(account.currency, balance))),
        }))
    }

    async fn get_trial_balance(
        &self,
        _request: Request<proto::GetTrialBalanceRequest>,
    ) -> Result<Response<proto::GetTrialBalanceResponse>, Status> {
        let call = Call::current()?;
        let as_of = self.clock.now();
        let rows = self.store.totals(&call.merchant).await?;
        let mut totals: BTreeMap<String, proto::TrialBalanceTotal> = BTreeMap::new();
        for row in &rows {
            let total = totals.entry(row.currency.clone()).or_insert_with(|| proto::TrialBalanceTotal {
                currency_code: row.currency.clone(),
                ..proto::TrialBalanceTotal::default()
            });
            let sum = |total: i64, more: i64| {
                total.checked_add(more).ok_or_else(|| Error::internal("a total does not fit 64 bits"))
            };
            total.debit_minor_units = sum(total.debit_minor_units, row.debits)?;
            total.credit_minor_units = sum(total.credit_minor_units, row.credits)?;
        }
        // Asserted a second time, on another path than the one that wrote them.
        if let Some(wrong) = totals.values().find(|total| total.debit_minor_units != total.credit_minor_units) {
            return Err(Error::internal(format!("the books do not balance in {}", wrong.currency_code)).into());
        }
        let lines = rows.into_iter().map(|row| proto::TrialBalanceLine {
            account_type: row.account_type,
            currency_code: row.currency,
            debit_minor_units: row.debits,
            credit_minor_units: row.credits,
        });
        Ok(Response::new(proto::GetTrialBalanceResponse {
            lines: lines.collect(),
            totals: totals.into_values().collect(),
            as_of_time: Some(platform::timestamp(as_of)),
        }))
    }
}

impl Ledger {
    /// The sum after the account's newest line.
    async fn newest(&self, merchant: &str, account: &florin::account::Account) -> Result<Option<i64>, Error> {
        Ok(self.store.statement(merchant, account, None, 1).await?.first().map(|line| line.running))
    }
}
