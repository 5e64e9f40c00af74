//! What the operator asks: a socket that answers, and the commands that ask it.
//!
//! A query is a word and a newline; the answer is JSON, up to the end of the connection. Every
//! answer is made of what the agent has in memory and of the maps themselves, at that moment.

pub mod client;
pub mod report;
pub mod server;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// The agent's health.
    Status,
    /// The pods of this node.
    Endpoints,
    /// Frontends and backends.
    Services,
    /// Policy sets.
    Policy,
    /// Drop counters and the last drops.
    Drops,
}

impl Query {
    const ALL: [Self; 5] = [
        Self::Status,
        Self::Endpoints,
        Self::Services,
        Self::Policy,
        Self::Drops,
    ];

    /// The word on the socket.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Endpoints => "endpoints",
            Self::Services => "services",
            Self::Policy => "policy",
            Self::Drops => "drops",
        }
    }

    /// The query of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|query| query.word() == word)
    }
}
