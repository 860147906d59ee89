//! The policy of each RPC, read from the descriptor (`florin.common.v1.rpc`), so that no second table can disagree.

use std::collections::HashMap;

use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, Value};

use crate::proto::DESCRIPTORS;

/// What a caller needs to call an RPC and what they may do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Scope that the caller's identity must hold.
    pub scope: String,
    /// Whether an idempotency key is required.
    pub idempotency_key_required: bool,
    /// Whether the call may be repeated without further thought.
    pub retry_safe: bool,
    /// Whether the call is never exposed to merchants.
    pub operator_only: bool,
}

/// The contracts' descriptors.
#[must_use]
pub fn descriptors() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).expect("the build made it")
}

/// The policy of every RPC of Florin's, by its path (`/package.Service/Method`). `None` for one that has none.
#[must_use]
pub fn policies(pool: &DescriptorPool) -> HashMap<String, Option<Policy>> {
    let extension = pool.get_extension_by_name("florin.common.v1.rpc").expect("declared in rpc.proto");
    let services = pool.services().filter(|service| service.package_name().starts_with("florin."));
    let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
    methods
        .map(|method| {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            let options = method.options();
            let value = options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned());
            (path, value.as_ref().and_then(Value::as_message).map(policy))
        })
        .collect()
}

fn policy(message: &DynamicMessage) -> Policy {
    let flag = |name| message.get_field_by_name(name).and_then(|value| value.as_bool()).unwrap_or_default();
    let scope = message.get_field_by_name("scope").and_then(|value| value.as_str().map(ToOwned::to_owned));
    debug_assert_eq!(message.descriptor().name(), "RpcPolicy");
    Policy {
        scope: scope.unwrap_or_default(),
        idempotency_key_required: flag("idempotency_key_required"),
        retry_safe: flag("retry_safe"),
        operator_only: flag("operator_only"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_has_a_policy_with_a_scope() {
        let policies = policies(&descriptors());
        assert!(policies.len() >= 18, "{}", policies.len());
        for (path, policy) in &policies {
            assert!(policy.as_ref().is_some_and(|policy| !policy.scope.is_empty()), "{path} has no policy");
        }
    }

    #[test]
    fn what_merchants_reach_over_http_is_not_for_operators() {
        let pool = descriptors();
        let http = pool.get_extension_by_name("google.api.http").unwrap();
        let policies = policies(&pool);
        for service in pool.services().filter(|service| service.package_name().starts_with("florin.")) {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                let operator_only = policies[&path].as_ref().unwrap().operator_only;
                assert_ne!(method.options().has_extension(&http), operator_only, "{path}");
            }
        }
    }

    #[test]
    fn what_changes_something_for_a_merchant_needs_a_key() {
        for (path, policy) in policies(&descriptors()) {
            let policy = policy.unwrap();
            let writes = policy.scope.ends_with(".write") && !policy.operator_only;
            assert_eq!(writes, policy.idempotency_key_required, "{path}");
        }
    }
}
