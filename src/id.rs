//! Ids: UUIDs inside, TypeIDs (`pay_01jd…`) on the wire. One type for each kind, so that none can stand for another.

use std::fmt;

use uuid::Uuid;

/// Number of partitions that a subject's key is hashed over, so that a consumer group can later be split by partition
/// without touching a publisher. Fixed: changing it moves keys.
pub const PARTITIONS: u16 = 8;

/// Crockford's base 32 in lower case, as the TypeID specification (v0.3) has it.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 26 characters of 5 bits hold the 128 bits of a UUID.
const ENCODED_LENGTH: usize = 26;

/// Why a text is no id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The id is of another kind.
    #[error("must start with {expected}_")]
    Prefix {
        /// The prefix that was wanted.
        expected: &'static str,
    },
    /// The text is no TypeID.
    #[error("must be {expected}_ and 26 characters of 0-9 and a-z without i, l, o and u")]
    Malformed {
        /// The prefix that was wanted.
        expected: &'static str,
    },
}

/// The partition of a key.
#[must_use]
pub fn partition(key: &str) -> u16 {
    use std::hash::Hasher as _;
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(key.as_bytes());
    u16::try_from(hasher.finish() % u64::from(PARTITIONS)).expect("smaller than PARTITIONS")
}

/// Writes `prefix_` and the UUID in base 32.
fn encode(prefix: &str, uuid: Uuid) -> String {
    let mut bits = uuid.as_u128();
    let mut text = [0_u8; ENCODED_LENGTH];
    for place in text.iter_mut().rev() {
        *place = ALPHABET[usize::try_from(bits & 31).expect("five bits")];
        bits >>= 5;
    }
    format!("{prefix}_{}", std::str::from_utf8(&text).expect("ASCII"))
}

/// Reads what [`encode`] wrote.
fn decode(expected: &'static str, text: &str) -> Result<Uuid, IdError> {
    let (prefix, encoded) = text.rsplit_once('_').ok_or(IdError::Malformed { expected })?;
    if prefix != expected {
        return Err(IdError::Prefix { expected });
    }
    let malformed = IdError::Malformed { expected };
    // The first character holds three bits only: above 7 the number would not fit 128 bits.
    if encoded.len() != ENCODED_LENGTH || encoded.as_bytes()[0] > b'7' {
        return Err(malformed);
    }
    let mut bits = 0_u128;
    for character in encoded.bytes() {
        let value = ALPHABET.iter().position(|&known| known == character);
        bits = bits << 5 | u128::try_from(value.ok_or_else(|| malformed.clone())?).expect("five bits");
    }
    Ok(Uuid::from_u128(bits))
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// What the id starts with on the wire.
            pub const PREFIX: &'static str = $prefix;

            /// A new id, in the order of time (UUIDv7).
            #[must_use]
            #[allow(clippy::new_without_default, reason = "each call makes another id")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id with this UUID.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID, as the database holds it.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&encode($prefix, self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                decode($prefix, text).map(Self)
            }
        }
    )*};
}

ids! {
    /// A payment.
    PaymentId = "pay";
    /// One seller's part of a payment.
    PaymentOrderId = "po";
    /// The execution of a payment order at a PSP; our reference there.
    ChargeId = "ch";
    /// One call to charge.
    AttemptId = "att";
    /// A journal entry.
    JournalEntryId = "je";
    /// A message.
    EventId = "evt";
}

/// Namespace of the deterministic journal entry ids.
const JOURNAL_NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_51a2_7c0e_5b7e_9a34_0d6c_35f0_4c11);

impl JournalEntryId {
    /// The id of the entry of `kind` for `operation`: the same for ever, so that a repeated event stays one entry
    /// (guarantees, rule 3).
    #[must_use]
    pub fn of(kind: &str, operation: Uuid) -> Self {
        Self(Uuid::new_v5(&JOURNAL_NAMESPACE, format!("{kind}:{operation}").as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn encodes_as_the_type_id_specification_says() {
        // From the specification's own examples.
        let uuid: Uuid = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        assert_eq!(encode("prefix", uuid), "prefix_01h455vb4pex5vsknk084sn02q");
        assert_eq!(encode("pay", Uuid::nil()), "pay_00000000000000000000000000");
        assert_eq!(encode("pay", Uuid::max()), "pay_7zzzzzzzzzzzzzzzzzzzzzzzzz");
    }

    #[test]
    fn another_kind_is_refused_by_name() {
        let order = PaymentOrderId::new().to_string();
        assert_eq!(order.parse::<PaymentId>(), Err(IdError::Prefix { expected: "pay" }));
    }

    #[test]
    fn what_is_no_type_id_is_refused() {
        for text in [
            "",
            "pay",
            "pay_",
            "pay_8zzzzzzzzzzzzzzzzzzzzzzzzz",
            "pay_01h455vb4pex5vsknk084sn02l",
            "pay_é1h455vb4pex5vsknk084sn0",
        ] {
            assert_eq!(text.parse::<PaymentId>(), Err(IdError::Malformed { expected: "pay" }), "{text:?}");
        }
    }

    #[test]
    fn entry_ids_depend_on_kind_and_operation_only() {
        let operation = Uuid::from_u128(7);
        assert_eq!(JournalEntryId::of("CAPTURE", operation), JournalEntryId::of("CAPTURE", operation));
        assert_ne!(JournalEntryId::of("CAPTURE", operation), JournalEntryId::of("FEE", operation));
    }

    #[test]
    fn partitions_never_move() {
        // A frozen sample: publishers of all versions must agree.
        assert_eq!(["a", "seller-42", "pay_01h455vb4pex5vsknk084sn02q"].map(partition), [4, 7, 2]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bits: u128) {
            let id = PaymentId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(id.to_string().parse::<PaymentId>().unwrap(), id);
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<PaymentId>();
        }
    }
}
