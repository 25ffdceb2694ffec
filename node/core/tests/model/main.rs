//! The core against a model: random commands over few users and conversations, with a
//! simulated fan-out that crashes, restarts from the outbox and delivers again; after
//! every step the core must agree with a plain, deliberately dumb chat in memory.
//!
//! On failure proptest prints the smallest case and its seed.

mod checks;
mod driver;
mod oracle;

use driver::{Driver, Op};
use proptest::prelude::*;

const USERS: u8 = 5;
const CONVERSATIONS: u8 = 5;

fn any_op() -> impl Strategy<Value = Op> {
    let user = 0..USERS;
    let conversation = 0..CONVERSATIONS;
    let mask = 0u8..(1 << USERS);
    prop_oneof![
        8 => (user.clone(), conversation.clone(), 0u8..12)
            .prop_map(|(sender, conversation, message)| Op::Send { sender, conversation, message }),
        2 => (user.clone(), 0u8..2, mask.clone(), 0u8..2)
            .prop_map(|(creator, group, members, request)| Op::Create { creator, group, members, request }),
        3 => (user.clone(), conversation.clone(), mask.clone())
            .prop_map(|(actor, conversation, members)| Op::Add { actor, conversation, members }),
        3 => (user.clone(), conversation.clone(), mask)
            .prop_map(|(actor, conversation, members)| Op::Remove { actor, conversation, members }),
        1 => (user.clone(), conversation.clone())
            .prop_map(|(actor, conversation)| Op::Leave { actor, conversation }),
        6 => (conversation.clone(), 1u8..6, any::<bool>())
            .prop_map(|(conversation, entries, crash)| Op::FanOut { conversation, entries, crash }),
        2 => (any::<u16>()).prop_map(|which| Op::Redeliver { which }),
        2 => conversation.clone().prop_map(|conversation| Op::Advance { conversation }),
        1 => (conversation.clone(), 0u8..8)
            .prop_map(|(conversation, upto)| Op::AdvanceLate { conversation, upto }),
        4 => (user.clone(), conversation, 0u8..20, any::<bool>())
            .prop_map(|(user, conversation, seq, verified)| Op::MarkRead { user, conversation, seq, verified }),
        1 => (user, 0u8..2, 0u8..30)
            .prop_map(|(user, device, inbox_seq)| Op::Ack { user, device, inbox_seq }),
        3 => prop_oneof![0i64..50, 0i64..(30 * 3_600_000), -3_600_000i64..0]
            .prop_map(|ms| Op::Tick { ms }),
        1 => Just(Op::Forget),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_core_agrees_with_the_model(
        ops in prop::collection::vec(any_op(), 1..160),
        boundaries in prop::collection::vec(1usize..9, 1..20),
    ) {
        let mut driver = Driver::new();
        // Two groups exist in most runs; `Op::Create` also meets them.
        driver.step(&Op::Create { creator: 0, group: 0, members: 0b00110, request: 0 });
        driver.step(&Op::Create { creator: 1, group: 1, members: 0b11001, request: 0 });
        for op in &ops {
            driver.step(op);
            driver.check_users();
        }
        driver.drain();
        driver.check_users();
        driver.check_conversations();
        driver.check_everyone_got_theirs();
        driver.check_replay(&boundaries);
    }
}
