//! A choice of tasks, as a deployment makes it with `--tasks` and a client with `?tasks=`.

use std::fmt;
use std::str::FromStr;

use facewise_core::task::{Task, UnknownTask};

/// A set of tasks, in the order of answers. Written as names with commas between: `age,emotion`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tasks(Vec<Task>);

/// Why a list of tasks was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TasksError {
    /// A word in it names no task.
    #[error(transparent)]
    Unknown(#[from] UnknownTask),
    /// There is no word in it.
    #[error("no task is named: the tasks are age, gender, smile and emotion")]
    Empty,
}

impl Tasks {
    /// The tasks among `some`; the order of `some` does not matter.
    pub fn of(some: impl IntoIterator<Item = Task>) -> Self {
        let some: Vec<Task> = some.into_iter().collect();
        Self(Task::ALL.into_iter().filter(|task| some.contains(task)).collect())
    }

    /// Whether a task is in the set.
    pub fn contains(&self, task: Task) -> bool {
        self.0.contains(&task)
    }

    /// The tasks in the order of answers.
    pub fn iter(&self) -> impl Iterator<Item = Task> + '_ {
        self.0.iter().copied()
    }

    /// The first task of this set that is not in `other`.
    pub fn first_missing_in(&self, other: &Self) -> Option<Task> {
        self.iter().find(|task| !other.contains(*task))
    }
}

impl Default for Tasks {
    /// Every task.
    fn default() -> Self {
        Self::of(Task::ALL)
    }
}

impl FromStr for Tasks {
    type Err = TasksError;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = list.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            return Err(TasksError::Empty);
        }
        let tasks = words.into_iter().map(str::parse).collect::<Result<Vec<Task>, _>>()?;
        Ok(Self::of(tasks))
    }
}

impl fmt::Display for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Task::name).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_any_order_and_written_in_the_order_of_answers() {
        let tasks: Tasks = "emotion, age,age".parse().expect("two tasks");
        assert_eq!(tasks.to_string(), "age,emotion");
        assert!(tasks.contains(Task::Age) && !tasks.contains(Task::Smile));
        assert_eq!(tasks.first_missing_in(&Tasks::of([Task::Age])), Some(Task::Emotion));
    }

    #[test]
    fn what_names_no_task_is_refused() {
        assert_eq!(" ,".parse::<Tasks>(), Err(TasksError::Empty));
        assert_eq!("age,beauty".parse::<Tasks>(), Err(UnknownTask("beauty".into()).into()));
    }
}
