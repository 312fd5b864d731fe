"""Pruning while a model trains: schedules followed, zeros kept, weights rewound."""
