%%% An application whose one process, below its supervisor, is the pool: as nodes have it.
-module(mesh_vm_app).

-behaviour(application).

-export([run/2, start/2, stop/1]).

-define(POOL, macula_gateway_mesh).

%% Loads and starts it, with the pool's options. When it has stopped, the reason that the pool's
%% server ended with is in the file `End'.
run(Options, End) ->
    Description = [
        {vsn, "1"},
        {registered, []},
        {applications, [kernel, stdlib]},
        {mod, {?MODULE, {Options, End}}}
    ],
    ok = application:load({application, ?MODULE, Description}),
    application:start(?MODULE).

start(_Type, {Options, End}) ->
    {ok, Supervisor} = supervisor:start_link(mesh_vm, Options),
    Self = self(),
    Witness = spawn(fun() -> witness(Self) end),
    receive
        {Witness, ready} -> {ok, Supervisor, {Witness, End}}
    end.

stop({Witness, End}) ->
    Witness ! {tell, self()},
    receive
        {Witness, Reason} -> ok = file:write_file(End, io_lib:format("~p", [Reason]))
    end.

%% A VM that stops goes on only when stop/1 has returned.
witness(Starter) ->
    Monitor = monitor(process, ?POOL),
    Starter ! {self(), ready},
    receive
        {'DOWN', Monitor, process, _, Reason} ->
            receive
                {tell, Asker} -> Asker ! {self(), Reason}
            end
    end.
