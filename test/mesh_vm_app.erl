%%% An application whose one process, below its supervisor, is the pool: as nodes have it.
-module(mesh_vm_app).

-behaviour(application).

-export([run/1, start/2, stop/1]).

%% Loads and starts it, with the pool's options.
run(Options) ->
    Description = [
        {vsn, "1"},
        {registered, []},
        {applications, [kernel, stdlib]},
        {mod, {?MODULE, Options}}
    ],
    ok = application:load({application, ?MODULE, Description}),
    application:start(?MODULE).

start(_Type, Options) -> supervisor:start_link(mesh_vm, Options).

stop(_State) -> ok.
